//! A Pre-Authenticated Request becomes `list`, `head`, ranged `get` and `put`, with typed errors.
//!
//! One retry policy, one place that knows what the service's answers mean. This room knows nothing of file
//! systems or models, and never lets a token into a message.
