// Light or dark before the first paint; a plain script, because a module would run after it.
(() => {
  try {
    const { theme } = JSON.parse(localStorage.getItem("colossal-llama2-settings")) ?? {};
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Nothing is kept, or not by this page: the system's choice stands.
  }
})();
