"""How the demo's page looks, as expressions that its tests evaluate in it."""

TOO_WIDE = """() => {
  const clipped = (element) => {
    for (let outer = element.parentElement; outer; outer = outer.parentElement) {
      const {left, right} = outer.getBoundingClientRect();
      if (getComputedStyle(outer).overflowX !== "visible" && left >= 0 && right <= innerWidth + 1) return true;
    }
    return false;
  };
  const wide = (element) => {
    const {left, right, width} = element.getBoundingClientRect();
    return width && left < innerWidth && right > innerWidth + 1 && element.checkVisibility() && !clipped(element);
  };
  return [...document.body.querySelectorAll("*")].filter(wide).map((element) => element.outerHTML.slice(0, 200));
}"""
"""What is wider than the page and not clipped: a list of elements."""

FAINT = """() => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const channels = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (colour) => {
    const [red, green, blue] = channels(colour).map((one) => one / 255)
      .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const {backgroundColor} = getComputedStyle(element);
      if (channels(backgroundColor)[3] === 255) return backgroundColor;
    }
  };
  const ratio = (one, other) => {
    const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };
  const texts = [...document.querySelectorAll("#app *")].filter((element) =>
    element.checkVisibility() && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  const lines = [...document.querySelectorAll("path.line")];
  return [
    ...texts.map((one) => [one.outerHTML.slice(0, 120), ratio(getComputedStyle(one).color, behind(one)), 4.5]),
    ...lines.map((one) => [one.outerHTML.slice(0, 60), ratio(getComputedStyle(one).stroke, behind(one)), 3]),
  ].filter(([, is, needed]) => is < needed);
}"""
"""Texts of a contrast below 4.5 and lines of one below 3 (WCAG 2.2, 1.4.3 and 1.4.11), with what they have."""
