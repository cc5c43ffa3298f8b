"""What settings mean together: each module returns the problems of one group, with remedies."""
