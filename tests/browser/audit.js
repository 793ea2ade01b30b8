// Finds what would keep people from using the page: controls without a name, text with little contrast, repeated ids,
// what is wider than the screen. An expression for the browser; its value is a list of complaints.
(() => {
  const complaints = [];
  const visible = (node) => node.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const describe = (node) => `${node.tagName}#${node.id}.${node.className} “${node.textContent.slice(0, 30)}”`;

  const channel = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const parse = (color) => color.match(/[\d.]+/g).map(Number);
  const luminance = ([r, g, b]) =>
    0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
  const background = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const found = parse(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const contrast = (node) => {
    const values = [luminance(parse(getComputedStyle(node).color)), luminance(background(node))].sort((a, b) => b - a);
    return (values[0] + 0.05) / (values[1] + 0.05);
  };

  for (const control of document.querySelectorAll("button, a[href], input, textarea, progress, summary, dialog, nav")) {
    const labels = [...(control.labels ?? [])].map((label) => label.textContent).join("");
    const referred = document.getElementById(control.getAttribute("aria-labelledby"))?.textContent ?? "";
    const own = control.matches("input, textarea, dialog, nav, progress") ? "" : control.textContent;
    const name = control.getAttribute("aria-label") || referred || labels || own;
    if (!name.trim()) complaints.push(`no name: ${describe(control)}`);
  }
  for (const node of document.querySelectorAll("body *")) {
    const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!hasText || !visible(node) || node.closest(".hidden, .skip, :disabled, script, option")) continue;
    const ratio = contrast(node);
    if (ratio < 4.5) complaints.push(`contrast ${ratio.toFixed(2)}: ${describe(node)}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) complaints.push(`twice: #${id}`);
  for (const area of [document.documentElement, document.getElementById("scroll")]) {
    const [width, room] = [area.scrollWidth, area.clientWidth];
    if (width > room) complaints.push(`${width} pixels in ${room}: ${describe(area)}`);
  }
  for (const picture of document.querySelectorAll("svg")) {
    if (picture.getAttribute("aria-hidden") !== "true") complaints.push("a picture without a text");
  }
  if (!document.documentElement.lang) complaints.push("no language");
  return complaints;
})()
