// The strip of pictures becomes one picture and a slider; without this script the strip stays.
for (const slider of document.querySelectorAll(".slider")) {
  const frames = [...slider.querySelectorAll(".frames figure")];
  const input = slider.querySelector("input");
  const output = slider.querySelector("output");
  const show = () => {
    frames.forEach((frame, i) => (frame.hidden = i !== Number(input.value)));
    output.textContent = frames[input.value].dataset.label;
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", show);
  slider.classList.add("alive");
  show();
}
