"""What speaks to systems outside, thin and typed: no rules, no threads, nothing imported early."""
