// Copy buttons. All else on these pages works without a script or is htmx.
// The clipboard needs HTTPS or localhost; elsewhere the buttons stay hidden and a click selects the text.
if (navigator.clipboard) {
  const show = root => root.querySelectorAll("[data-copy][hidden]").forEach(button => { button.hidden = false });
  show(document);
  document.addEventListener("htmx:after:swap", () => show(document));
  document.addEventListener("click", async event => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    await navigator.clipboard.writeText(button.previousElementSibling.textContent);
    const name = button.ariaLabel;
    button.textContent = button.ariaLabel = "Copied";
    setTimeout(() => { button.textContent = "Copy"; button.ariaLabel = name }, 2000);
  });
}
