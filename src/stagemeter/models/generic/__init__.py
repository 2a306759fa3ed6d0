"""Any model of transformers that writes text: its parts are found, its stages are counted, nothing is known of it."""
