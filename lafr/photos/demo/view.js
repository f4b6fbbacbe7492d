// Body of the view's `js_on_load`: `element` is its node, and what is set as `props.value` is shown in it.
let shown = null;

function preview(file) {
  if (!file) return;
  if (shown) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(file);
  const failed = "this.replaceWith('No preview: this browser cannot show the file.')";
  props.value = `<figure class="photo"><img src="${shown}" alt="Your photo" onerror="${failed}"></figure>`;
}

// At once, before the file has arrived at the server
document.addEventListener("change", ({ target }) => {
  if (target.matches("#upload input[type=file]")) preview(target.files[0]);
}, true);
document.addEventListener("drop", (event) => {
  if (event.target.closest("#upload")) preview(event.dataTransfer.files[0]);
}, true);

function move(slider) {
  slider.closest("figure").style.setProperty("--cut", slider.value + "%");
  slider.setAttribute("aria-valuetext", `${slider.value} % before, ${100 - slider.value} % after`);
}

function enlarge(button, on) {
  button.setAttribute("aria-pressed", on);
  button.closest("figure").classList.toggle("full", on);
}

element.addEventListener("input", ({ target }) => move(target));
element.addEventListener("click", ({ target }) => {
  if (target.matches(".enlarge")) enlarge(target, target.getAttribute("aria-pressed") !== "true");
});
document.addEventListener("keydown", ({ key }) => {
  const button = element.querySelector(".full .enlarge");
  if (key === "Escape" && button) enlarge(button, false);
});
// The next result keeps the slider where the visitor left it
watch("value", () => element.querySelectorAll("input").forEach(move));

// Screen readers are told which face is worked on; Gradio says "Loading" alone
const said = document.createElement("p");
said.className = "said";
said.setAttribute("role", "status");
element.parentElement.append(said);

// Gradio's own parts: the name of the upload is its text, and a message has one button, not one in another
new MutationObserver(() => {
  const progress = document.querySelector("#view .progress-level-inner");
  const text = progress ? progress.textContent.split(" - ")[0].trim() : "";
  if (said.textContent !== text) said.textContent = text;
  document.querySelectorAll("#upload button[aria-dropeffect]").forEach((node) => node.removeAttribute("aria-label"));
  document.querySelectorAll(".toast-header").forEach((node) => {
    node.removeAttribute("role");
    node.removeAttribute("tabindex");
  });
}).observe(document.body, { childList: true, subtree: true, characterData: true });
