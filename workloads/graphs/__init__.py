"""The graphs: what is computed, as plain tasks over the kernels."""
