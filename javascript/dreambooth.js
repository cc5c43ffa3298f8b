// Keeps the page fresh: when it comes into view again, the list of models is looked at anew.
(() => {
  const refresh = () => {
    const button = document.querySelector("#dreambooth_refresh");
    (button?.querySelector("button") ?? button)?.click();
  };
  const watch = () => {
    const page = document.querySelector("#dreambooth");
    if (!page) {
      setTimeout(watch, 1000);
      return;
    }
    let visible = true; // what is in view when it is built is fresh
    new IntersectionObserver((entries) => {
      const now = entries.some((entry) => entry.isIntersecting);
      if (now && !visible) refresh();
      visible = now;
    }).observe(page);
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && visible) refresh();
    });
  };
  watch();
})();
