/** What the scripts of a page share; all other names of a script stay inside its function. */
const page = {
  byId: (id) => document.getElementById(id),

  make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  },
};

// ---- Light and dark ----
(() => {
  const { byId } = page;

  // A sandboxed frame, which trackers show pages in, may not keep anything.
  const kept = {
    get() { try { return localStorage.getItem("flopcallback-theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("flopcallback-theme", value); } catch { /* it lasts as long as the page */ } },
  };
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const themeButton = byId("theme");

  function showTheme(theme) {
    if (theme) document.documentElement.dataset.theme = theme;
    const isDark = (document.documentElement.dataset.theme || (prefersDark.matches ? "dark" : "light")) === "dark";
    themeButton.textContent = isDark ? "Light" : "Dark";
    themeButton.setAttribute("aria-label", `Switch to ${isDark ? "light" : "dark"} colours`);
  }

  const keptTheme = kept.get();
  showTheme(keptTheme === "dark" || keptTheme === "light" ? keptTheme : "");
  prefersDark.addEventListener("change", () => showTheme(""));
  themeButton.hidden = false;
  themeButton.addEventListener("click", () => {
    const theme = themeButton.textContent.toLowerCase();
    kept.set(theme);
    showTheme(theme);
  });
})();
