"""The only files that import paho or tritonclient; foreign exceptions end here."""
