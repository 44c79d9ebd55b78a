"""The demo's steps, one module each, in the order in which `demo.story` tells them."""
