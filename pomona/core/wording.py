"""Numbers as people read them."""


def amount(number: float) -> str:
    """`4.0 M`, `2.74 B`, `7.4 T`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}"


def usd(dollars: float | None) -> str:
    """`$3.4 M`, `$12.3 k`, `$410`, `$4.10`: three figures; a dash where there is no price."""
    if dollars is None:
        return "-"
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if dollars >= size * 0.9995:
            return f"${dollars / size:,.3g}{unit}"
    return f"${dollars:.0f}" if dollars >= 100 else f"${dollars:.2f}"


def duration(days: float | None) -> str:
    """`24.5 days`, `3.1 hours`, `40 s`; a dash where it is not known."""
    if days is None:
        return "-"
    for length, unit in ((1, "days"), (1 / 24, "hours"), (1 / 1440, "min")):
        if days >= length:
            return f"{days / length:,.3g} {unit}" if days / length < 1000 else f"{days / length:,.0f} {unit}"
    return f"{days * 86400:.2g} s"


def energy(kwh: float | None) -> str:
    """`925 MWh`, `40 kWh`; a dash where it is not known."""
    if kwh is None:
        return "-"
    for size, unit in ((1e6, "GWh"), (1e3, "MWh")):
        if kwh >= size:
            return f"{kwh / size:,.3g} {unit}"
    return f"{kwh:.3g} kWh"


def seconds(value: float) -> str:
    """`4.68 s`, `0.24 s`, `31 ms`."""
    if value >= 1000:
        return f"{value:,.0f} s"
    return f"{value:.3g} s" if value >= 0.1 else f"{value * 1000:.2g} ms" if value else "0"


def percent(share: float) -> str:
    """`52.5 %`."""
    return f"{100 * share:.1f} %"
