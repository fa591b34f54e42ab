"""Who may do what: tickets between routers and workers, and the keys that they are signed with."""
