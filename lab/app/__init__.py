"""The app: load adapters, set or learn the alphas of a merge, compare answers side by side, take the merge home.

It owns no maths: it calls the library's functions and reads the same records. `lab.app.page.build_page` makes the page.
"""
