//! Several nodes from outside: tiny models with seeded weights, real requests, real connections.

mod machines;
