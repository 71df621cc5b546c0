// Elements by name, without a word of HTML: text given here is text on the page.

/**
 * Create an element.
 *
 * @param {string} tag
 * @param {Object} attributes `on...` functions become listeners, true an empty attribute; false and null are left out.
 * @param {...(Node|string|null)} children
 */
export function make(tag, attributes = {}, ...children) {
  const created = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") created.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) {
      created.setAttribute(name, value === true ? "" : String(value));
    }
  }
  created.append(...children.filter((child) => child !== null));
  return created;
}

const SHAPES = {
  bin: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12M10.5 10.5v5.5M13.5 10.5v5.5",
  check: "M5 12.5l4.5 4.5L19 7.5",
  columns: "M4 5h7v14H4zM13 5h7v14h-7z",
  copy: "M9 9h10v10H9zM5 15V5h10",
  cross: "M6 6l12 12M18 6L6 18",
  down: "M12 5v14M6 13l6 6 6-6",
  menu: "M4 7h16M4 12h16M4 17h16",
  moon: "M19 14.5A7.5 7.5 0 0 1 9.5 5 7.5 7.5 0 1 0 19 14.5z",
  pen: "M5 19l1-4L16 5l3 3L9 18z",
  plus: "M12 5v14M5 12h14",
  retry: "M19 12a7 7 0 1 1-2-5l2 2M19 4v5h-5",
  send: "M12 19V5M6 11l6-6 6 6",
  settings: "M4 7h10M18 7h2M4 17h2M10 17h10M16 5v4M8 15v4",
  stop: "M7 7h10v10H7z",
};

const SVG = "http://www.w3.org/2000/svg";

/** Draw one of the page's own signs; it says nothing to a screen reader, the button around it does. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon");
  path.setAttribute("d", SHAPES[name]);
  svg.append(path);
  return svg;
}

/** Create a button that shows a sign and is named by `label`, which is its tooltip too. */
export function iconButton(name, label, attributes = {}) {
  return make("button", { type: "button", "aria-label": label, title: label, ...attributes }, icon(name));
}
