//! Functions of Jinja2 that every template finds.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::limits::listed;
use super::python::{iterated, refused};

/// Python's `dict`.
pub(super) fn dict(state: &State, given: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    if given.len() > 1 {
        return Err(refused(format!("dict expected at most 1 argument, got {}", given.len())));
    }
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    if let Some(entries) = given.first() {
        for item in listed(state, &iterated(entries)?)? {
            pairs.push(match entries.kind() {
                ValueKind::Map => (item.clone(), entries.get_item(&item)?),
                _ => (item.get_item(&Value::from(0))?, item.get_item(&Value::from(1))?),
            });
        }
    }
    for name in named.args() {
        pairs.push((Value::from(name), named.get(name)?));
    }
    Ok(Value::from_pairs(pairs))
}

/// Jinja2's `cycler`: repeats its items in turn.
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

pub(super) fn cycler(items: Rest<Value>) -> Result<Value, Error> {
    if items.is_empty() {
        return Err(refused("cycler: at least one item has to be provided"));
    }
    Ok(Value::from_object(Cycler { items: items.to_vec(), at: AtomicUsize::new(0) }))
}

/// Printed as a plain object: its items may contain the namespace that contains it, and printing them would never end.
impl fmt::Debug for Cycler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<cycler>")
    }
}

impl Cycler {
    fn current(&self) -> Value {
        self.items[self.at.load(Ordering::Relaxed) % self.items.len()].clone()
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str()? == "current").then(|| self.current())
    }

    fn call_method(self: &Arc<Self>, _: &mut State, method: &str, arguments: &[Value]) -> Result<Value, Error> {
        let () = from_args(arguments)?;
        match method {
            "next" => {
                let current = self.current();
                self.at.fetch_add(1, Ordering::Relaxed);
                Ok(current)
            }
            "reset" => {
                self.at.store(0, Ordering::Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

/// Jinja2's `joiner`: empty at first, then the separator.
struct Joiner {
    between: Value,
    used: AtomicBool,
}

pub(super) fn joiner(between: Option<Value>) -> Value {
    let between = between.unwrap_or_else(|| Value::from(", "));
    Value::from_object(Joiner { between, used: AtomicBool::new(false) })
}

/// See [`Cycler`].
impl fmt::Debug for Joiner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<joiner>")
    }
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State, arguments: &[Value]) -> Result<Value, Error> {
        let () = from_args(arguments)?;
        Ok(if self.used.swap(true, Ordering::Relaxed) { self.between.clone() } else { Value::from("") })
    }
}
