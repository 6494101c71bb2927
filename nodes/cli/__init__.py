"""The commands of `runnel`, one module each; `app` declares them and their flags."""
