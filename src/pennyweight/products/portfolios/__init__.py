"""The portfolio rebalancer: a provider tells what a portfolio has become, we tell what brings it back.

A portfolio is one record kept with its user: the target, which only its owner changes, and
what the provider said last. An update makes a run: a line for each asset, with what to
trade and by which rule, or why not. A run is kept nowhere but in its entry; each names the
one before. Points are of the portfolio; what is sold is what is bought, to the 10^-10 percent.
"""

# Every command of the product is imported here, so that it is known wherever the product is.
from pennyweight.products.portfolios import execute, letters, queue, rebalance, setup
from pennyweight.products.portfolios.law import PortfoliosLaw
from pennyweight.products.portfolios.shared import PRODUCT

__all__ = ["PRODUCT", "PortfoliosLaw", "execute", "letters", "queue", "rebalance", "setup"]
