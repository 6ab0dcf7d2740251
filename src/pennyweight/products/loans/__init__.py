"""Loans against collateral: applied for, activated at 2:1, warned, and liquidated once.

A loan is a record; its collateral is one hold of this product on the borrower's BESKAR
account, its payment a transfer from `house:GC`. Prices are not in the book: whoever
watches them gives commands that carry the quotes they stand on, and the rules decide by
these alone. A loan goes new, active, liquidating, liquidated, and never back. Selling is
one slice, one order at one venue, after the other; each is in the journal before its order
goes out, with the request id that makes it the same order however often it is sent.
"""

from pennyweight.products.loans.law import LoansLaw
from pennyweight.products.loans.shared import PRODUCT

__all__ = ["PRODUCT", "LoansLaw"]
