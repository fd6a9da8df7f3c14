"use strict";
// Draws each figure when it comes near the window, or before printing; legends are buttons that any keyboard reaches.
const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
const drawn = new Map();

function draw(plot) {
  if (!drawn.has(plot.id)) {
    const { data, layout } = JSON.parse(document.getElementById(plot.id + "-d").textContent);
    drawn.set(plot.id, Plotly.newPlot(plot, data, layout, config).then(() => legend(plot)));
  }
  return drawn.get(plot.id);
}

function legend(plot) {
  const groups = new Map();
  plot.data.forEach((trace, at) => {
    const group = trace.legendgroup || trace.name;
    if (!group) return;
    if (!groups.has(group)) groups.set(group, { traces: [], shown: null });
    groups.get(group).traces.push(at);
    if (!(trace.meta && trace.meta.quiet) && groups.get(group).shown === null) groups.get(group).shown = trace;
  });
  const box = plot.parentElement.querySelector(".legend");
  box.replaceChildren();
  if (groups.size < 2 || groups.size > 24) return; // more are told apart by pointing at them
  for (const [group, { traces, shown }] of groups) {
    const button = document.createElement("button");
    const mark = document.createElement("i");
    const look = (shown && (shown.mode === "markers" ? shown.marker : shown.line)) || {};
    const dashes = { dash: "dashed", dot: "dotted", dashdot: "dashed" };
    mark.style.borderTopColor = (shown && shown.marker && shown.type === "bar" ? shown.marker.color : look.color) || "#555";
    mark.style.borderTopStyle = dashes[look.dash] || "solid";
    button.type = "button";
    button.append(mark, group);
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      const show = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(show));
      Plotly.restyle(plot, { visible: show }, traces);
    });
    box.append(button);
  }
}

const near = new IntersectionObserver(
  (seen) => seen.forEach((one) => { if (one.isIntersecting) { near.unobserve(one.target); draw(one.target); } }),
  { rootMargin: "300px" });
document.querySelectorAll(".plot").forEach((plot) => near.observe(plot));

document.querySelectorAll("[role=tablist]").forEach((list) => {
  const tabs = [...list.querySelectorAll("[role=tab]")];
  const choose = (chosen) => tabs.forEach((tab) => {
    const is = tab === chosen;
    tab.setAttribute("aria-selected", String(is));
    tab.tabIndex = is ? 0 : -1;
    const panel = document.getElementById(tab.getAttribute("aria-controls"));
    panel.toggleAttribute("data-hidden", !is);
    if (is) panel.querySelectorAll(".plot").forEach((plot) => draw(plot).then(() => Plotly.Plots.resize(plot)));
  });
  tabs.forEach((tab, at) => {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!move) return;
      const next = tabs[(at + move + tabs.length) % tabs.length];
      choose(next);
      next.focus();
    });
  });
});

window.addEventListener("beforeprint", () => document.querySelectorAll(".plot").forEach((plot) => {
  draw(plot).then(() => Plotly.Plots.resize(plot));
}));

if (document.body.dataset.version) {
  setInterval(async () => {
    try {
      const answer = await fetch("version", { cache: "no-store" });
      if (answer.ok && await answer.text() !== document.body.dataset.version) location.reload();
    } catch (error) { /* the server has ended: what is shown stays */ }
  }, 3000);
}
