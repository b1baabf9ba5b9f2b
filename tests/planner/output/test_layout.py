"""Tables line up and stay within the width, whatever stands in them."""

from planner.output.layout import WIDTH, table


def test_table_aligns() -> None:
    assert table("lr", ("a", "b"), [("xx", "1"), ("y", "22")]).splitlines() == [
        "  a    b",
        "  xx   1",
        "  y   22",
    ]


def test_the_widest_cells_lose_their_beginning() -> None:
    lines = table("lr", ("path", "n"), [("a" * 120 + ".end", "1"), ("b", "2")]).splitlines()
    assert max(map(len, lines)) == WIDTH
    assert lines[1].startswith("  …a")
    assert lines[1].endswith(".end  1")
