"""The pages in headless Chromium. A package, so that one browser serves all its tests (scope ``package``)."""
