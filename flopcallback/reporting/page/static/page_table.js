page.moduleTable = (() => {
  const { byId, make } = page;
  const data = JSON.parse(byId("rows").textContent);
  if (!data) return null;

  // ---- The rows ----
  const count = data.names.length;
  const column = Object.fromEntries(data.columns.map((each) => [each.key, each]));
  const children = Array.from({ length: count }, () => []);
  const paths = [data.names[0]];
  const depths = [0];
  for (let row = 1; row < count; row++) {
    const parent = data.parents[row]; // Always an earlier row.
    children[parent].push(row);
    paths.push(parent ? `${paths[parent]}.${data.names[row]}` : data.names[row]);
    depths.push(depths[parent] + 1);
  }
  /** What stands in a row's cell: its text, the exact one, the bar's length in percent or null, and the share it shows. */
  function cellOf(each, row) {
    if (!each) return { text: "", exact: "", bar: null, share: "" };
    const [text, exact = "", bar = null, share = ""] = each.cells[each.of[row]];
    return { text, exact: exact || text, bar, share };
  }
  const searched = paths.map((path, row) =>
    `${path} ${cellOf(column.type, row).text} ${data.notes[row] || ""}`.toLowerCase());

  // ---- What is shown: all of it follows from this ----
  const AT_ONCE = 250, MORE = 1000;
  const state = { open: new Set(data.open), view: "tree", words: [], sort: null, limit: AT_ONCE, focus: 0, detail: -1 };
  let found = null; // With a search: { rows, above: rows that contain them, open }.
  let shown = []; // Rows in the order in which they stand.

  function search(text) {
    state.words = text.toLowerCase().split(/\s+/).filter(Boolean);
    state.limit = AT_ONCE;
    if (!state.words.length) { found = null; return; }
    found = { rows: new Set(), above: new Set(), open: new Set() };
    for (let row = 0; row < count; row++) {
      if (!state.words.every((word) => searched[row].includes(word))) continue;
      found.rows.add(row);
      for (let up = row; up; ) {
        up = data.parents[up];
        if (found.above.has(up)) break;
        found.above.add(up);
        found.open.add(up);
      }
    }
  }

  function sorted(rows) {
    if (!state.sort) return rows;
    const { key, down } = state.sort;
    const { of, unsortable } = key === "module" ? orderOfNames() : column[key];
    return rows.slice().sort((one, other) => {
      const blanks = (of[one] < unsortable) - (of[other] < unsortable);
      return blanks || (down ? of[other] - of[one] : of[one] - of[other]) || one - other;
    });
  }

  let nameOrder = null; // Of many names it takes a while, so it waits for the first click.

  function orderOfNames() {
    if (nameOrder) return nameOrder;
    const collator = new Intl.Collator("en", { numeric: true });
    const rows = Array.from({ length: count }, (_, row) => row).sort((a, b) => collator.compare(paths[a], paths[b]));
    const of = new Array(count);
    rows.forEach((row, place) => { of[row] = place; });
    nameOrder = { of, unsortable: 0 };
    return nameOrder;
  }

  const openSet = () => (found ? found.open : state.open);

  function rowsToShow() {
    if (state.view !== "tree") {
      const rows = [];
      for (let row = 0; row < count; row++) {
        if (found ? found.rows.has(row) : state.view === "all" || !children[row].length) rows.push(row);
      }
      return sorted(rows);
    }
    const rows = [], open = openSet();
    const stack = found && !found.rows.size ? [] : [[0, false]];
    while (stack.length) {
      const [row, isInside] = stack.pop();
      const isMatch = !found || isInside || found.rows.has(row);
      if (!isMatch && !found.above.has(row)) continue;
      rows.push(row);
      if (!open.has(row)) continue;
      const inside = sorted(children[row]);
      for (let at = inside.length - 1; at >= 0; at--) stack.push([inside[at], found !== null && isMatch]);
    }
    return rows;
  }

  // ---- Drawing ----
  const body = byId("body"), heads = byId("heads"), more = byId("more");

  function drawHeads() {
    const all = [{ key: "module", heading: "module", tip: "", rank: 0, isText: true }, ...data.columns];
    heads.replaceChildren(...all.map((each) => {
      const head = make("th", `r${each.rank} w-${each.key} ${each.key === "module" ? "module" : each.isText ? "text" : ""}`);
      head.setAttribute("aria-sort", state.sort?.key !== each.key ? "none" : state.sort.down ? "descending" : "ascending");
      head.scope = "col";
      const button = make("button", "", each.heading);
      button.type = "button";
      button.title = each.tip;
      button.dataset.key = each.key;
      head.append(button);
      return head;
    }));
  }

  /** The text with the words that were searched for marked. */
  function marked(text) {
    const lower = text.toLowerCase(), fragment = document.createDocumentFragment();
    let at = 0;
    while (lower.length === text.length && state.words.length) { // Where lower case is longer, places would not agree.
      const hits = state.words.map((word) => [lower.indexOf(word, at), word.length]).filter(([place]) => place >= 0);
      if (!hits.length) break;
      const [place, length] = hits.reduce((one, other) => (other[0] < one[0] ? other : one));
      fragment.append(text.slice(at, place), make("mark", "", text.slice(place, place + length)));
      at = place + length;
    }
    fragment.append(text.slice(at));
    return fragment;
  }

  function nameCell(row, isTree) {
    const cell = make("td", "module");
    cell.title = paths[row];
    const twist = make("span", "twist", isTree && children[row].length ? "▸" : "");
    twist.setAttribute("aria-hidden", "true");
    cell.append(twist, marked(isTree ? data.names[row] : paths[row]));
    if (data.notes[row]) cell.append(make("span", "badge", data.notes[row]));
    return cell;
  }

  function valueCell(each, row) {
    const { text, exact, bar, share } = cellOf(each, row);
    const cell = make("td", `r${each.rank} ${each.isText ? "text" : ""}`, bar === null ? text : undefined);
    cell.title = exact;
    if (bar === null) {
      if (each.key === "rate" && text && each.of[row] < each.unsortable) cell.classList.add("warning");
      return cell;
    }
    const line = make("span", bar ? "cell" : "cell zero"), track = make("span", "track"), fill = make("i", each.bar);
    line.append(make("span", "", text), make("small", "", share));
    fill.style.width = `${bar}%`;
    if (!bar) fill.style.minWidth = "0";
    track.append(fill);
    cell.append(line, track);
    return cell;
  }

  function drawRow(row) {
    const isTree = state.view === "tree";
    const line = make("tr", row === state.detail ? "opened" : "");
    line.dataset.row = row;
    line.tabIndex = row === state.focus ? 0 : -1;
    line.setAttribute("aria-level", isTree ? depths[row] + 1 : 1);
    if (isTree && children[row].length) line.setAttribute("aria-expanded", openSet().has(row));
    if (found && !found.rows.has(row)) line.classList.add("path-only");
    line.style.setProperty("--level", isTree ? depths[row] : 0);
    line.append(nameCell(row, isTree), ...data.columns.map((each) => valueCell(each, row)));
    return line;
  }

  /** A cell that spans more than these would add columns to the table. */
  const columnsInSight = () => [...heads.children].filter((head) => head.offsetWidth).length || 1;

  function drawDetail(row) {
    const line = make("tr", "detail"), cell = make("td"), list = make("dl");
    cell.colSpan = columnsInSight();
    for (const each of data.columns) {
      const { exact } = cellOf(each, row);
      if (!exact) continue;
      const pair = make("div");
      pair.append(make("dt", "", each.heading), make("dd", "", exact));
      list.append(pair);
    }
    cell.append(make("p", "path", paths[row]), list);
    line.append(cell);
    return line;
  }

  function draw() {
    const hadFocus = body.contains(document.activeElement);
    shown = rowsToShow();
    const lines = shown.slice(0, state.limit);
    if (!lines.includes(state.focus)) state.focus = lines.length ? lines[0] : 0;
    body.replaceChildren(...lines.flatMap((row) => (row === state.detail ? [drawRow(row), drawDetail(row)] : [drawRow(row)])));
    if (hadFocus) lineOf(state.focus)?.focus();
    const left = shown.length - lines.length;
    more.hidden = left <= 0;
    more.textContent = `Show ${Math.min(MORE, left).toLocaleString("en")} of ${left.toLocaleString("en")} more`;
    const matches = found ? `${found.rows.size.toLocaleString("en")} of ` : "";
    byId("found").textContent = `${matches}${count.toLocaleString("en")} modules. A click shows exact figures.`;
  }

  const lineOf = (row) => body.querySelector(`tr[data-row="${row}"]`);

  // ---- What the reader does ----
  function toggle(row) {
    const open = openSet();
    if (!open.delete(row)) open.add(row);
    draw();
  }

  function toggleDetail(row) {
    state.detail = state.detail === row ? -1 : row;
    draw();
  }

  /** Shows a row wherever it is: its parents opened, the search cleared. */
  function reveal(row) {
    byId("search").value = "";
    search("");
    setView("tree");
    for (let up = row; up; ) { up = data.parents[up]; state.open.add(up); }
    state.detail = state.focus = row;
    const place = rowsToShow().indexOf(row);
    state.limit = Math.max(AT_ONCE, place + 50);
    draw();
    lineOf(row).scrollIntoView({ block: "center" });
    lineOf(row).focus({ preventScroll: true });
  }

  function setView(view) {
    state.view = view;
    state.limit = AT_ONCE;
    for (const button of document.querySelectorAll("[data-view]")) {
      button.setAttribute("aria-pressed", button.dataset.view === view);
    }
    byId("open-all").hidden = byId("close-all").hidden = view !== "tree";
  }

  heads.addEventListener("click", (event) => {
    const key = event.target.closest("button")?.dataset.key;
    if (!key) return;
    const downFirst = key !== "module" && !column[key].isText;
    const again = state.sort?.key === key;
    // The third click brings the model's own order back.
    state.sort = !again ? { key, down: downFirst } : state.sort.down === downFirst ? { key, down: !downFirst } : null;
    drawHeads();
    draw();
    heads.querySelector(`[data-key="${key}"]`).focus();
  });

  body.addEventListener("click", (event) => {
    const line = event.target.closest("tr[data-row]");
    if (!line || String(getSelection())) return;
    const row = Number(line.dataset.row);
    state.focus = row;
    const isParent = line.hasAttribute("aria-expanded");
    if (isParent && event.target.closest(".module")) toggle(row); else toggleDetail(row);
  });

  const keys = {
    ArrowDown: (row, at) => shown[Math.min(at + 1, Math.min(shown.length, state.limit) - 1)],
    ArrowUp: (row, at) => shown[Math.max(at - 1, 0)],
    Home: () => shown[0],
    End: () => shown[Math.min(shown.length, state.limit) - 1],
    ArrowRight: (row) => {
      if (state.view !== "tree" || !children[row].length) return row;
      if (openSet().has(row)) return shown[shown.indexOf(row) + 1] ?? row;
      toggle(row);
      return row;
    },
    ArrowLeft: (row) => {
      if (state.view !== "tree") return row;
      if (!openSet().has(row) || !children[row].length) return data.parents[row];
      toggle(row);
      return row;
    },
    Enter: (row) => { toggleDetail(row); return row; },
    " ": (row) => { toggleDetail(row); return row; },
  };
  body.addEventListener("keydown", (event) => {
    const line = event.target.closest("tr[data-row]");
    if (!line || !keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const row = Number(line.dataset.row);
    const next = keys[event.key](row, shown.indexOf(row));
    const before = lineOf(state.focus);
    if (before) before.tabIndex = -1;
    state.focus = next;
    const after = lineOf(next);
    if (after) { after.tabIndex = 0; after.focus(); }
  });

  byId("search").addEventListener("input", (event) => { search(event.target.value); draw(); });
  for (const button of document.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => { setView(button.dataset.view); draw(); });
  }
  byId("open-all").addEventListener("click", () => {
    for (let row = 0; row < count; row++) if (children[row].length) openSet().add(row);
    draw();
  });
  byId("close-all").addEventListener("click", () => { openSet().clear(); openSet().add(0); draw(); });
  more.addEventListener("click", () => { state.limit += MORE; draw(); });

  addEventListener("resize", () => {
    for (const cell of body.querySelectorAll(".detail > td")) cell.colSpan = columnsInSight();
  });

  drawHeads();
  setView("tree");
  draw();
  byId("tools").hidden = false;

  return {
    reveal,
    nameOf: (row) => paths[row],
    /** What a row's cell says in full; empty where there is nothing to say. */
    exact: (key, row) => cellOf(column[key], row).exact,
  };
})();
