"""What the products decide: pure rules, each product blind to the others."""
