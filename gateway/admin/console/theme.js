// Runs before the first paint, so that a dark page never flashes white. The choice is kept in this browser.
(() => {
  const KEY = "edge-gateway.theme";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage is off in this browser
    }
  };
  const apply = () => {
    document.documentElement.dataset.theme = chosen() ?? (dark.matches ? "dark" : "light");
  };
  window.switchTheme = () => {
    const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try {
      localStorage.setItem(KEY, next);
    } catch {
      // it holds until the page is left
    }
    document.documentElement.dataset.theme = next;
    return next;
  };
  dark.addEventListener("change", apply);
  apply();
})();
