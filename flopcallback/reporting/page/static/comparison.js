// A run is the same one in the table and in every figure: pointing at it in one place shows it in all.
(() => {
  const { byId, make } = page;
  const tip = byId("tip"), runRows = [...document.querySelectorAll("#body tr")];
  const headings = [...document.querySelectorAll(".runs thead th")].map((head) => head.textContent);

  function light(run) {
    document.body.classList.toggle("some-lit", run !== undefined);
    for (const each of document.querySelectorAll("[data-run]")) each.classList.toggle("lit", each.dataset.run === run);
  }

  function tell(run, x, y) {
    const row = runRows.find((each) => each.dataset.run === run);
    const lines = [...row.cells].slice(2).map((cell, place) => make("div", "", `${headings[place + 2]}: ${cell.textContent}`));
    tip.replaceChildren(make("b", "", row.cells[1].firstChild.textContent), ...lines);
    tip.hidden = false;
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - tip.offsetWidth - 4)) + scrollX}px`;
    tip.style.top = `${(y > tip.offsetHeight + 16 ? y - tip.offsetHeight - 12 : y + 16) + scrollY}px`;
  }

  function point(event) {
    const marked = event.target.closest?.("[data-run]");
    light(marked?.dataset.run);
    tip.hidden = true;
    // A tap on a row shows the columns that a phone has no room for.
    if (marked && (event.type === "click" || marked.closest(".plot"))) tell(marked.dataset.run, event.clientX, event.clientY);
  }

  document.addEventListener("pointerover", point);
  document.addEventListener("click", point);

  // ---- Sorting: what a run does not have stays last ----

  function compare(one, other, isDescending) {
    if (!one || !other) return (one ? 0 : 1) - (other ? 0 : 1);
    const [a, b] = [Number(one), Number(other)];
    const order = Number.isNaN(a) || Number.isNaN(b) ? one.localeCompare(other, undefined, { numeric: true }) : a - b;
    return isDescending ? -order : order;
  }

  document.querySelectorAll(".runs thead th").forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => {
      const isDescending = head.getAttribute("aria-sort") === "ascending";
      for (const each of head.parentElement.cells) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.sort;
      byId("body").append(...runRows.slice().sort((one, other) => compare(key(one), key(other), isDescending)));
    });
  });
})();
