// Light or dark: as the screen is set, until somebody presses the button.

const darkScreen = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : darkScreen.matches;
}

/** Let a button switch the theme; `changed()` is called when it is another one. */
export function listenTheme(button, changed) {
  const tell = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    changed();
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    tell();
  });
  darkScreen.addEventListener("change", tell);
  tell();
}
