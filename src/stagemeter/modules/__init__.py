"""Any ``nn.Module``: what each part of it costs, from shapes alone where that can be."""
