"""The withdrawal risk engine: check a balance and hold at once, settle later by what was traded.

A withdrawal is one hold of this product on the user's account of the token, no more. Its
id is the caller's (the hold's reference), else `w` and the hold's number. A settlement
tells what was really sold and bought: it pays the sold quantity out of the hold, gives
the rest back and credits what was bought; the other side of both is `venue:trades`.
A settlement is a fact: it is booked whatever the user has, and what is missing is owed.
"""

from pennyweight.products.withdrawals.law import WithdrawalsLaw
from pennyweight.products.withdrawals.shared import PRODUCT
from pennyweight.products.withdrawals.withdraw import ExpireWithdrawal

__all__ = ["PRODUCT", "ExpireWithdrawal", "WithdrawalsLaw"]
