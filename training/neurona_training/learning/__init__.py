"""How a network learns: gradient descent, the classic rules, evaluation."""
