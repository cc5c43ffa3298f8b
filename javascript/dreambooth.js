// Keeps the page fresh: our list of models when it comes into view again, and the WebUI's own lists
// of checkpoints once a job has come to rest, or one of them is about to be opened meanwhile. Where
// Gradio has no timer, it asks for news by pressing hidden buttons (ui/gradio_compat.py, poll). The
// tab in view is remembered for when the page is loaded anew (ui/gradio_compat.py, open_tab).
(() => {
  const LISTS = {
    "#setting_sd_model_checkpoint": "#refresh_sd_model_checkpoint",
    "#modelmerger_primary_model_name": "#refresh_checkpoint_A",
    "#modelmerger_secondary_model_name": "#refresh_checkpoint_B",
    "#modelmerger_tertiary_model_name": "#refresh_checkpoint_C",
  };
  const TABS = "#dreambooth_tabs [role=tab], #dreambooth_tabs > .tab-nav button";
  const REST_MS = 5000;
  const stale = new Set();
  let rest = 0;
  const press = (selector) => {
    const button = document.querySelector(selector);
    (button?.querySelector("button") ?? button)?.click();
  };
  const noteWork = () => {
    Object.keys(LISTS).forEach((list) => stale.add(list));
    clearTimeout(rest);
    rest = setTimeout(() => Object.values(LISTS).forEach(press), REST_MS);
  };
  const refreshWanted = (event) => {
    const wanted = [...stale].find((list) => event.target.closest?.(list));
    if (!wanted) return;
    stale.delete(wanted);
    press(LISTS[wanted]);
  };
  const rememberTab = (event) => {
    const tab = event.target.closest?.(TABS);
    if (tab) sessionStorage.setItem("dreambooth_tabs", tab.textContent.trim());
  };
  const watch = () => {
    const page = document.querySelector("#dreambooth");
    const progress = document.querySelector("#dreambooth_run_progress");
    if (!page || !progress) {
      setTimeout(watch, 1000);
      return;
    }
    let visible = true; // what is in view when it is built is fresh
    new IntersectionObserver((entries) => {
      const now = entries.some((entry) => entry.isIntersecting);
      if (now && !visible) press("#dreambooth_refresh");
      visible = now;
    }).observe(page);
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && visible) press("#dreambooth_refresh");
    });
    for (const button of document.querySelectorAll("[id^=dreambooth_tick_]")) {
      const [, milliseconds] = button.id.match(/^dreambooth_tick_(\d+)/);
      setInterval(() => document.hidden || press(`#${button.id}`), Number(milliseconds));
    }
    new MutationObserver(noteWork).observe(progress, { childList: true, subtree: true });
    for (const sign of ["focusin", "pointerover"]) document.addEventListener(sign, refreshWanted);
    document.addEventListener("click", rememberTab);
  };
  watch();
})();
