// A link to a row opens what the row is folded into. Browsers that do this themselves are not disturbed.
(function () {
  function reveal() {
    var id = decodeURIComponent(location.hash.slice(1));
    var row = id && document.getElementById(id);
    if (!row || !row.closest("figure")) return;
    var folded = row.closest("details:not([open])");
    var moved = false;
    while (folded) {
      folded.open = true;
      moved = true;
      folded = folded.parentElement && folded.parentElement.closest("details:not([open])");
    }
    if (moved) row.scrollIntoView();
  }
  // What is wider than its box can be scrolled by keyboard as well.
  function reachable() {
    document.querySelectorAll("figure.place .highlight pre, .md-typeset__scrollwrap, .md-typeset pre > code").forEach(function (box) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    });
  }
  var pieces = 0;
  // Names for two parts that the theme leaves without one.
  function named() {
    var search = document.querySelector(".md-search[role=dialog]");
    if (search) search.setAttribute("aria-label", "Search");
    document.querySelectorAll("nav.md-code__nav:not([aria-label])").forEach(function (buttons) {
      buttons.setAttribute("aria-label", "Code " + ++pieces);
    });
  }
  addEventListener("hashchange", reveal);
  addEventListener("resize", reachable);
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", start);
  else start();
  function start() {
    reveal();
    reachable();
    named();
    new MutationObserver(named).observe(document.body, { childList: true, subtree: true });
  }
})();
