//! PARs: who may do what.

use std::collections::HashMap;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::answer::Refusal;

/// Oracle's access types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum AccessType {
    ObjectRead,
    ObjectWrite,
    ObjectReadWrite,
    AnyObjectRead,
    AnyObjectWrite,
    #[default]
    AnyObjectReadWrite,
}

impl AccessType {
    fn reads(self) -> bool {
        !matches!(self, AccessType::ObjectWrite | AccessType::AnyObjectWrite)
    }

    fn writes(self) -> bool {
        !matches!(self, AccessType::ObjectRead | AccessType::AnyObjectRead)
    }
}

/// One PAR. With `object` it is for that name alone, else for all names under `prefix`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grant {
    pub token: Option<String>,
    pub access: AccessType,
    /// Made with `bucketListingAction=ListObjects`.
    pub listing: bool,
    pub prefix: String,
    pub object: Option<String>,
}

impl Default for Grant {
    fn default() -> Self {
        Self { token: None, access: AccessType::default(), listing: true, prefix: String::new(), object: None }
    }
}

/// Attempted access to a name, or to the names under a prefix.
#[derive(Clone, Copy, Debug)]
pub enum Attempt<'a> {
    Read(&'a str),
    Write(&'a str),
    List(&'a str),
    Delete,
}

/// The PARs there are, by token.
#[derive(Default)]
pub struct Grants(RwLock<HashMap<String, Grant>>);

impl Grants {
    /// Adds a PAR and gives its token, made up where it has none.
    pub fn add(&self, grant: Grant) -> String {
        let token = grant
            .token
            .clone()
            .unwrap_or_else(|| format!("{:032x}-{:08x}", rand::random::<u128>(), rand::random::<u32>()));
        self.0.write().insert(token.clone(), grant);
        token
    }

    /// Ends a PAR; false where there is none.
    pub fn revoke(&self, token: &str) -> bool {
        self.0.write().remove(token).is_some()
    }

    /// Checks whether `token` allows `attempt`; otherwise returns the service's refusal.
    pub fn check(&self, token: &str, attempt: Attempt<'_>, namespace: &str, bucket: &str) -> Result<(), Refusal> {
        let grants = self.0.read();
        // The service's order of checks: an unknown token, then access, then the prefix.
        let grant = grants.get(token).ok_or_else(Refusal::unknown_par)?;
        let within = |name: &str| match &grant.object {
            Some(object) => name == object,
            None => name.starts_with(&grant.prefix),
        };
        let (allowed, name) = match attempt {
            Attempt::Read(name) => (grant.access.reads(), Some(name)),
            Attempt::Write(name) => (grant.access.writes(), Some(name)),
            Attempt::List(prefix) => (grant.listing && grant.object.is_none(), Some(prefix)),
            Attempt::Delete => (false, None),
        };
        if !allowed {
            return Err(Refusal::denied(namespace, bucket));
        }
        if name.is_some_and(|name| !within(name)) {
            return Err(Refusal::outside_prefix());
        }
        Ok(())
    }
}
