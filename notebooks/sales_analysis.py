# Runs in a session, with sales.csv uploaded beside it: revenue by region and year, and a plot of it by month.
import matplotlib.pyplot as plt
import pandas as pd

sales = pd.read_csv("sales.csv", parse_dates=["date"])
sales["discount"] = sales["discount"].fillna(0)
kept = sales[sales["returned"] == "no"]
revenue = kept.assign(year=kept["date"].dt.year, revenue=kept["quantity"] * kept["unit_price"] * (1 - kept["discount"]))

by_region = revenue.pivot_table(
    index="region", columns="year", values="revenue", aggfunc="sum", margins=True, margins_name="All"
)
print(f"{len(sales):,} orders from {sales['date'].min():%d %B %Y} to {sales['date'].max():%d %B %Y}")
print(f"{(sales['returned'] == 'yes').mean():.1%} were returned; revenue of the rest, in thousands:\n")
print((by_region / 1000).round(1).to_string())

monthly = revenue.groupby([pd.Grouper(key="date", freq="MS"), "region"])["revenue"].sum().unstack()
figure, axes = plt.subplots(figsize=(9, 4.5))
(monthly / 1000).plot.area(ax=axes, alpha=0.85, linewidth=0)
axes.set(title="Revenue by month and region", xlabel="", ylabel="thousand", ylim=(0, None))
axes.margins(x=0)
axes.legend(title="", loc="upper left", frameon=False)
figure.tight_layout()
plt.show()
