"""Makes ``sales.csv``: three years of orders of a shop with four regions; the same file on every run.

It looks like what people bring: a season, growth, a product that fades, returns, missing cells.
"""

import csv
import math
import random
from datetime import date, timedelta
from pathlib import Path

ROWS = 60_000
REGIONS = {"North": 0.34, "South": 0.27, "East": 0.22, "West": 0.17}
PRODUCTS = {"Espresso machine": 329.0, "Grinder": 119.0, "Kettle": 64.5, "Filter set": 12.9, "Beans 1 kg": 24.9}
CHANNELS = ("web", "store", "partner")
FIRST_DAY = date(2022, 1, 1)
DAYS = 3 * 365


def main() -> None:
    """Write the file beside this script."""
    draw = random.Random(20240501)  # noqa: S311  (a table to look at, not a secret)
    with Path(__file__).with_name("sales.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["order_id", "date", "region", "channel", "product", "quantity", "unit_price", "discount", "returned"]
        )
        for number in range(ROWS):
            writer.writerow(order(number, draw))


def order(number: int, draw: random.Random) -> list[object]:
    """One row."""
    # More orders later on: the shop grows.
    day = int(DAYS * math.sqrt(draw.random()))
    when = FIRST_DAY + timedelta(days=day)
    weights = [1.0, 1.4, 2.0, 4.0, 6.0 + 2 * math.cos(2 * math.pi * (when.month - 12) / 12)]
    weights[1] *= 1.5 - day / DAYS
    product = draw.choices(list(PRODUCTS), weights)[0]
    region = draw.choices(list(REGIONS), list(REGIONS.values()))[0]
    price = PRODUCTS[product] * (1 + 0.04 * (when.year - FIRST_DAY.year)) * draw.uniform(0.97, 1.03)
    discount = draw.choice([0, 0, 0, 0.05, 0.1, 0.2]) if draw.random() > 0.03 else ""
    return [
        100_000 + number,
        when.isoformat(),
        region,
        draw.choices(CHANNELS, [6, 3, 1])[0],
        product,
        1 + int(draw.expovariate(1.2)),
        round(price, 2),
        discount,
        "yes" if draw.random() < 0.04 else "no",
    ]


if __name__ == "__main__":
    main()
