// Without this the bars are links to the queries below; with it they open in place.
(function () {
  var box = document.getElementById("picked");
  if (!box) return;
  document.addEventListener("click", function (event) {
    var link = event.target.closest && event.target.closest("svg a");
    if (!link) return;
    var body = document.getElementById(link.getAttribute("href").slice(1));
    if (!body) return;
    event.preventDefault();
    document.querySelectorAll("svg a.on").forEach(function (a) { a.classList.remove("on"); });
    link.classList.add("on");
    var copy = body.cloneNode(true);
    copy.removeAttribute("id");
    box.replaceChildren(copy);
    box.focus({ preventScroll: true });
  });
})();

// A printed page has the folded parts too, but for the lists of many more queries.
(function () {
  var folded = [];
  addEventListener("beforeprint", function () {
    folded = Array.from(document.querySelectorAll("details:not([open], .more, .more *)"));
    folded.forEach(function (part) { part.open = true; });
  });
  addEventListener("afterprint", function () {
    folded.forEach(function (part) { part.open = false; });
  });
})();
