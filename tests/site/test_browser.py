"""The site in a real browser."""

import json
import re

import pytest


@pytest.fixture
def paths(site):
    return sorted(
        path.relative_to(site).as_posix().removesuffix("index.html")
        for path in site.rglob("index.html")
    )


def wait(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20, poll_frequency=0.05).until(condition)


def test_every_page_loads_in_silence_and_asks_nobody_else(browser, address, paths):
    noise, elsewhere = [], set()
    for path in paths:
        browser.get(address + path)
        noise += [
            (path, entry["message"])
            for entry in browser.get_log("browser")
            if entry["level"] in ("SEVERE", "WARNING")
        ]
        for entry in browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if not url.startswith((address, "data:", "blob:", "about:", "chrome:")):
                    elsewhere.add(url)
    assert noise == [] and elsewhere == set()
    assert len(paths) > 40


def test_search_finds_early_stopping(browser, address):
    from selenium.webdriver.common.by import By

    browser.get(address)
    box = browser.find_element(By.CSS_SELECTOR, "input.md-search__input")
    browser.execute_script("document.querySelector('#__search').click()")
    wait(browser, lambda b: box.is_displayed())
    box.send_keys("early stopping")
    found = wait(
        browser,
        lambda b: [
            link.get_attribute("href")
            for link in b.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
        ],
    )
    assert any("how-to/early-stopping" in link for link in found[:3]), found[:5]


def test_copy_gives_the_code_alone(browser, address):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    browser.get(address)
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    browser.execute_cdp_cmd(
        "Browser.grantPermissions", {"origin": address.rstrip("/"), "permissions": permissions}
    )
    button = wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, ".md-code__button"))[1]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    ActionChains(browser).move_to_element(button).click().perform()
    copied = wait(
        browser,
        lambda b: b.execute_async_script(
            "navigator.clipboard.readText().then(arguments[0], e => arguments[0](''))"
        ),
    )
    assert "fit(net, md" in copied
    assert not re.search(r"^(>>>|\$|\d+$)", copied, re.MULTILINE)
    compile(copied, "copied", "exec")


def test_dark_mode_stays(browser, address):
    def scheme():
        return browser.execute_script("return document.body.dataset.mdColorScheme")

    browser.get(address)
    browser.execute_script("localStorage.clear()")
    browser.get(address)
    for _ in range(3):
        if scheme() == "slate":
            break
        before = browser.execute_script("return document.body.dataset.mdColorMedia")
        browser.execute_script(
            "[...document.querySelectorAll('form[data-md-component=palette] label')]"
            ".find(l => !l.hidden).click()"
        )
        wait(
            browser,
            lambda b, before=before: (
                b.execute_script("return document.body.dataset.mdColorMedia") != before
            ),
        )
    assert scheme() == "slate"
    browser.get(address + "lesson/fit/")
    assert scheme() == "slate"
    browser.execute_script("localStorage.clear()")


def test_a_phone_needs_no_sideways_scroll(browser, address, paths):
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        wide = {}
        for path in paths:
            browser.get(address + path)
            width = browser.execute_script("return document.documentElement.scrollWidth")
            if width > 360:
                wide[path] = width
        assert wide == {}
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


# Colours fade into one another; axe would see them half way.
IN_SCHEME = """
const style = document.createElement("style");
style.textContent = "* { transition: none !important }";
document.head.append(style);
document.body.dataset.mdColorScheme = arguments[0];
"""


COLORS = {"runOnly": ["color-contrast"]}


@pytest.mark.parametrize("scheme, rules", [("default", None), ("slate", COLORS)], ids=str)
def test_axe_finds_nothing_serious(browser, address, paths, scheme, rules):
    axe = pytest.importorskip("axe_core_python.selenium", reason="not run: needs axe-core-python")
    found = {}
    for path in paths:
        browser.get(address + path)
        browser.execute_script(IN_SCHEME, scheme)
        for violation in axe.Axe().run(browser, options=rules)["violations"]:
            if violation["impact"] in ("serious", "critical"):
                nodes = [node["html"][:120] for node in violation["nodes"][:2]]
                found.setdefault(violation["id"], []).append((path, nodes))
    assert found == {}, json.dumps(found, indent=1)[:4000]
