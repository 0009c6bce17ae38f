"""Contestants from other libraries; each is imported only where that library is installed."""
