"use strict";
// The charts, by Vega-Lite; drawn again where the theme changes. `report` is read once for both scripts.
const report = JSON.parse(document.getElementById("data").textContent);
const palette = {
  light: ["#1f6f8b", "#c4551a", "#6b4fa0", "#2f7d4f", "#b03a6e", "#8a6d1d", "#4a6fa5", "#7a4b3a"],
  dark: ["#6cc3e0", "#f0975d", "#b59ae6", "#7fcf9b", "#ee8ab8", "#d8bd62", "#94b6e8", "#d0a08c"],
};
const theme = () => document.documentElement.dataset.theme;
const productNames = Object.keys(report.figures.products);
const colourOf = (name) => palette[theme()][productNames.indexOf(name) % 8];

function configuration() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  const [ink, soft, line] = [of("--ink"), of("--soft"), of("--line")];
  return {
    background: "transparent", font: of("--sans"), padding: { left: 2, right: 12, top: 4, bottom: 2 },
    autosize: { type: "fit-x", contains: "padding" },
    view: { stroke: null },
    axis: { labelColor: soft, titleColor: soft, titleFontWeight: 400, titleFontSize: 12, labelFontSize: 11, gridColor: line,
            domainColor: line, tickColor: line, titlePadding: 6, labelLimit: 130 },
    axisX: { grid: false, labelFlush: false, labelPadding: 5 }, axisY: { domain: false, ticks: false, labelPadding: 6, tickCount: 5 },
    legend: { labelColor: ink, labelFontSize: 12, symbolSize: 70, offset: 8, columnPadding: 14, labelLimit: 200 },
    line: { strokeWidth: 2, color: of("--accent") }, point: { color: of("--accent") }, text: { color: ink, fontSize: 12 }, bar: { cornerRadiusEnd: 3 },
    range: { category: palette[theme()] },
  };
}

const plots = [];
function drawCharts() {
  const holder = document.getElementById("charts");
  if (!holder.childElementCount) {
    for (const chart of report.charts) {
      const figure = document.createElement("figure");
      figure.className = chart.wide ? "chart wide" : "chart";
      const caption = figure.appendChild(document.createElement("figcaption"));
      caption.appendChild(document.createElement("b")).textContent = chart.title;
      caption.appendChild(document.createElement("span")).textContent = chart.words;
      const plot = figure.appendChild(document.createElement("div"));
      plot.className = "plot";
      holder.append(figure);
      plots.push({ plot, chart, view: null });
    }
  }
  for (const one of plots) {
    const spec = { width: "container", description: one.chart.title, ...structuredClone(one.chart.spec) };
    const scale = (spec.encoding.color || {}).scale;
    const domain = scale ? scale.domain : (spec.layer || []).map((layer) => ((layer.encoding || {}).color || {}).scale).find(Boolean)?.domain;
    for (const part of [spec, ...(spec.layer || [])]) {
      if (part.encoding && part.encoding.color && part.encoding.color.scale) {
        part.encoding.color.scale.range = domain.map(colourOf);
        if (part.encoding.color.legend && one.plot.clientWidth < 330) part.encoding.color.legend.columns = 2;
      }
    }
    one.chart.done = draw(one.plot, spec, { actions: false, renderer: "svg", ast: true, config: configuration(), tooltip: { theme: "custom" } })
      .then((result) => { if (one.view) one.view.finalize(); one.view = result.view; });
  }
  return Promise.all(plots.map((one) => one.chart.done));
}

const themeButton = document.getElementById("theme");
function setTheme(name) {
  document.documentElement.dataset.theme = name;
  themeButton.textContent = name === "dark" ? "☀ light" : "☾ dark";
  window.drawn = drawCharts();
  for (const dot of document.querySelectorAll("[data-product-dot]")) dot.style.background = colourOf(dot.dataset.productDot);
}
themeButton.addEventListener("click", () => setTheme(theme() === "dark" ? "light" : "dark"));
const wantsDark = matchMedia("(prefers-color-scheme: dark)");
wantsDark.addEventListener("change", () => setTheme(wantsDark.matches ? "dark" : "light"));
setTheme(wantsDark.matches ? "dark" : "light");
