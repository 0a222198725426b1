// FLOPs against time: which module a point is, by mouse, finger or arrow keys.
page.drawScatter = (moduleTable) => {
  const { byId, make } = page;
  const plot = byId("plot");
  if (!plot) return;
  const tip = byId("tip"), svg = plot.querySelector("svg"), NEAR = 28;
  const points = [...svg.querySelectorAll("circle")];
  const byPlace = points.slice().sort((one, other) => place(one, "cx") - place(other, "cx") || place(one, "cy") - place(other, "cy"));
  let chosen = null;

  function place(point, axis) { return parseFloat(point.getAttribute(axis)); }

  function choose(point, isPinned) {
    chosen?.classList.remove("chosen");
    chosen = point;
    tip.hidden = !point;
    tip.classList.toggle("pinned", isPinned);
    if (!point) return;
    point.classList.add("chosen");
    const row = Number(point.dataset.row), figures = make("div"), show = make("button", "", "Show in the table");
    figures.append(make("b", "", point.dataset.name), make("div", "", point.dataset.said));
    show.type = "button";
    show.addEventListener("click", () => moduleTable.reveal(row));
    tip.replaceChildren(figures, ...(isPinned ? [show] : []));
    const frame = plot.getBoundingClientRect(), spot = point.getBoundingClientRect();
    const x = spot.left + spot.width / 2 - frame.left, y = spot.top - frame.top;
    tip.style.left = `${Math.max(0, Math.min(x + 14, frame.width - tip.offsetWidth))}px`;
    tip.style.top = `${y > tip.offsetHeight + 8 ? y - tip.offsetHeight - 8 : y + spot.height + 8}px`;
  }

  function nearest(event) {
    const frame = svg.getBoundingClientRect();
    let best = null, least = NEAR ** 2;
    for (const point of points) {
      const dx = frame.left + (place(point, "cx") / 100) * frame.width - event.clientX;
      const dy = frame.top + (place(point, "cy") / 100) * frame.height - event.clientY;
      if (dx * dx + dy * dy <= least) { best = point; least = dx * dx + dy * dy; }
    }
    return best;
  }

  const isPinned = () => !tip.hidden && tip.classList.contains("pinned");
  svg.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse" && !isPinned()) choose(nearest(event), false);
  });
  svg.addEventListener("pointerleave", () => { if (!isPinned()) choose(null, false); });
  svg.addEventListener("click", (event) => {
    const point = nearest(event);
    choose(point === chosen && isPinned() ? null : point, Boolean(point));
  });
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step && event.target === plot) {
      event.preventDefault();
      const at = chosen ? byPlace.indexOf(chosen) + step : 0;
      choose(byPlace[(at + byPlace.length) % byPlace.length], true);
    } else if (event.key === "Enter" && event.target === plot && chosen) {
      moduleTable.reveal(Number(chosen.dataset.row));
    } else if (event.key === "Escape") {
      choose(null, false);
    }
  });

  for (const button of document.querySelectorAll(".slow button")) {
    const point = points.find((each) => each.dataset.row === button.dataset.row);
    for (const [event, on] of [["mouseenter", true], ["mouseleave", false], ["focus", true], ["blur", false]]) {
      button.addEventListener(event, () => point && choose(on ? point : null, false));
    }
  }
};
