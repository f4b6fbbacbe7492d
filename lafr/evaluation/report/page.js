for (const compare of document.querySelectorAll(".compare")) {
  const slider = compare.querySelector("input");
  const move = () => {
    compare.style.setProperty("--cut", slider.value + "%");
    slider.setAttribute("aria-valuetext", slider.value + " % " + slider.dataset.left);
  };
  slider.addEventListener("input", move);
  move();
}
for (const button of document.querySelectorAll("button.truth")) {
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    button.closest("figure").classList.toggle("hq", on);
  });
}
