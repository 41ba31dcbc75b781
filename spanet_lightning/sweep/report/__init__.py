"""The report of a study: verified trials in, files out.

`gather` reads and verifies what is stored; `arms` and `importance` compute; `ablation`, `searching`
and `account` say it as a `document`; `markdown` and `page` write that; figures are `scene`s, which
`svg` and `png` draw. The same trials give the same bytes: nothing here knows what time it is.
"""
