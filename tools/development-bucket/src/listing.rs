//! `GET …/o/`: one page of names, in the order of their bytes.

use std::collections::BTreeSet;
use std::ops::Bound;

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::answer::Refusal;
use crate::content::Version;
use crate::store::{Index, Store};

/// The most that a page holds, and what it holds unless fewer are asked for.
const MOST_ON_A_PAGE: usize = 1000;

/// The query of a listing.
#[derive(Debug, PartialEq, Eq)]
pub struct Query {
    pub prefix: String,
    start: Option<String>,
    start_after: Option<String>,
    end: Option<String>,
    limit: usize,
    delimited: bool,
    fields: Vec<String>,
}

impl Query {
    pub fn parse(query: &str) -> Result<Self, Refusal> {
        let invalid = |message: String| Err(Refusal::invalid("InvalidParameter", message));
        let mut parsed = Self {
            prefix: String::new(),
            start: None,
            start_after: None,
            end: None,
            limit: MOST_ON_A_PAGE,
            delimited: false,
            fields: Vec::new(),
        };
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let value = value.into_owned();
            match &*key {
                "prefix" => parsed.prefix = value,
                "start" => parsed.start = Some(value),
                "startAfter" => parsed.start_after = Some(value),
                "end" => parsed.end = Some(value),
                "limit" => match value.parse() {
                    Ok(limit @ 1..=MOST_ON_A_PAGE) => parsed.limit = limit,
                    _ => return invalid(format!("limit must be from 1 to 1000, not '{value}'")),
                },
                "delimiter" if value == "/" => parsed.delimited = true,
                "delimiter" => return invalid("the only delimiter is '/'".to_owned()),
                "fields" => parsed.fields = value.split(',').map(|field| field.trim().to_owned()).collect(),
                _ => {}
            }
        }
        Ok(parsed)
    }

    /// Returns whether the listing begins with this page, and may read the directory again.
    fn is_first(&self) -> bool {
        self.start.is_none() && self.start_after.is_none()
    }

    fn lower(&self) -> Bound<&str> {
        // Names with a common prefix are contiguous, from the prefix itself on.
        let start = self.start.as_deref().max(Some(self.prefix.as_str()));
        match (start, self.start_after.as_deref()) {
            (start, Some(after)) if start.is_none_or(|start| start <= after) => Bound::Excluded(after),
            (Some(start), _) => Bound::Included(start),
            (None, None) => Bound::Unbounded,
            (None, Some(after)) => Bound::Excluded(after),
        }
    }
}

/// One page. Hashes what has no MD5 yet where MD5s are asked for: for blocking threads.
pub fn page(store: &Store, query: &Query, circular: bool) -> Response<Body> {
    let index = store.index(query.is_first());
    let Page { objects, prefixes, mut next } = choose(&index, query);
    // A loop back to the first name, which a client must notice.
    if circular && let Some((name, _)) = objects.first() {
        next = Some((*name).to_owned());
    }
    let objects: Vec<Value> = objects.iter().map(|(name, version)| entry(store, query, name, version)).collect();
    let mut body =
        Map::from_iter([("objects".to_owned(), Value::from(objects)), ("prefixes".to_owned(), json!(prefixes))]);
    if let Some(next) = next {
        body.insert("nextStartWith".to_owned(), Value::from(next));
    }
    let body = Value::Object(body).to_string();
    let length = body.len();
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}

struct Page<'a> {
    objects: Vec<(&'a str, &'a Version)>,
    prefixes: BTreeSet<String>,
    next: Option<String>,
}

fn choose<'a>(index: &'a Index, query: &Query) -> Page<'a> {
    let mut page = Page { objects: Vec::new(), prefixes: BTreeSet::new(), next: None };
    for (name, version) in index.range::<str, _>((query.lower(), Bound::Unbounded)) {
        let ends = query.end.as_ref().is_some_and(|end| name >= end);
        let Some(rest) = name.strip_prefix(query.prefix.as_str()).filter(|_| !ends) else { break };
        let folder = rest.find('/').filter(|_| query.delimited).map(|slash| &name[..=query.prefix.len() + slash]);
        // All names below a folder are represented by one prefix.
        if folder.is_some_and(|folder| page.prefixes.contains(folder)) {
            continue;
        }
        if page.objects.len() + page.prefixes.len() == query.limit {
            page.next = Some(name.clone());
            break;
        }
        match folder {
            Some(folder) => {
                page.prefixes.insert(folder.to_owned());
            }
            None => page.objects.push((name, version)),
        }
    }
    page
}

fn entry(store: &Store, query: &Query, name: &str, version: &Version) -> Value {
    let mut entry = Map::from_iter([("name".to_owned(), Value::from(name))]);
    for field in &query.fields {
        let value = match field.as_str() {
            "size" => Value::from(version.size_bytes),
            "etag" => Value::from(version.etag.clone()),
            "md5" => match store.md5(version) {
                Some(md5) => Value::from(STANDARD.encode(md5)),
                None => continue,
            },
            "timeModified" | "timeCreated" => {
                Value::from(OffsetDateTime::from(version.modified).format(&Rfc3339).unwrap_or_default())
            }
            "storageTier" => Value::from("Standard"),
            _ => continue,
        };
        entry.insert(field.clone(), value);
    }
    Value::Object(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Content;
    use std::sync::Arc;
    use std::time::SystemTime;

    fn index() -> Index {
        let version = Version {
            content: Content::Memory(bytes::Bytes::new()),
            size_bytes: 0,
            etag: String::new(),
            modified: SystemTime::UNIX_EPOCH,
        };
        let names = ["a", "a/1", "a/2", "a/b/3", "b", "b/", "b//x", "é", "z"];
        names.into_iter().map(|name| (name.to_owned(), Arc::new(version.clone()))).collect()
    }

    #[test]
    fn a_query_chooses_names() {
        for (query, names, prefixes, next) in [
            ("", "a a/1 a/2 a/b/3 b b/ b//x z é", "", ""),
            ("limit=2", "a a/1", "", "a/2"),
            ("limit=2&start=a/2", "a/2 a/b/3", "", "b"),
            ("startAfter=b&limit=1", "b/", "", "b//x"),
            ("startAfter=a&start=b", "b b/ b//x z é", "", ""),
            ("start=a&startAfter=b", "b/ b//x z é", "", ""),
            ("end=b", "a a/1 a/2 a/b/3", "", ""),
            ("prefix=a/", "a/1 a/2 a/b/3", "", ""),
            ("prefix=a/&start=a/2", "a/2 a/b/3", "", ""),
            ("prefix=a/&start=0", "a/1 a/2 a/b/3", "", ""),
            ("prefix=%C3%A9", "é", "", ""),
            ("prefix=none", "", "", ""),
            ("delimiter=/", "a b z é", "a/ b/", ""),
            ("delimiter=/&limit=2", "a", "a/", "b"),
            ("delimiter=/&prefix=a/", "a/1 a/2", "a/b/", ""),
            ("delimiter=/&prefix=b/", "b/", "b//", ""),
        ] {
            let index = index();
            let page = choose(&index, &Query::parse(query).unwrap());
            let chosen: Vec<_> = page.objects.iter().map(|(name, _)| *name).collect();
            assert_eq!(chosen.join(" "), names, "{query}");
            assert_eq!(page.prefixes.into_iter().collect::<Vec<_>>().join(" "), prefixes, "{query}");
            assert_eq!(page.next.unwrap_or_default(), next, "{query}");
        }
    }

    #[test]
    fn what_the_service_refuses_is_refused() {
        for query in ["limit=0", "limit=1001", "limit=x", "delimiter=-"] {
            assert_eq!(Query::parse(query).unwrap_err().status, 400, "{query}");
        }
    }
}
