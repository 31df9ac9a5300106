// Texts whose contrast with what is behind them is below 4.5 (WCAG 2.2, 1.4.3), each with its ratio.
() => {
  const parts = (colour) => {
    // Computed colours are rgb(), rgba() or color(srgb ...) in shares of one.
    const [r, g, b, a = 1] = colour.match(/[\d.]+/g).map(Number);
    return colour.startsWith("color(") ? [r * 255, g * 255, b * 255, a] : [r, g, b, a];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
  const light = (rgb) => {
    const [r, g, b] = rgb.map((each) => (each / 255 <= 0.04045 ? each / 255 / 12.92 : ((each / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    const own = parts(getComputedStyle(node).backgroundColor);
    return own[3] === 1 || !node.parentElement ? own.slice(0, 3) : over(own, behind(node.parentElement));
  };
  const poor = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.data.trim());
    if (!own || !node.checkVisibility() || node.closest(".hidden, .skip, noscript, option")) continue;
    const style = getComputedStyle(node);
    const ground = behind(node);
    const ink = over(parts(node instanceof SVGElement ? style.fill : style.color), ground);
    const [high, low] = [light(ink), light(ground)].sort((one, other) => other - one);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) poor.push(`${node.tagName}#${node.id} "${node.textContent.slice(0, 30)}" ${ratio.toFixed(2)}`);
  }
  return poor;
}
