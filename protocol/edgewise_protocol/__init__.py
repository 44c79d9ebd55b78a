"""The contract between Edgewise's server, tools and devices. No I/O of its own.

Import from the modules: `topics`, `messages`, `manifest`, `bundle`, `chunks`, `targets`,
`assignment`, `rounds`, `facts`, `sketches`, `features`, `enrolment`, `deployment`,
`bounds`, `names`, `errors`, `schema`.
"""
