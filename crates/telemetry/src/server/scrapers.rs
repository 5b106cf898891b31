//! Scrapers that have come, so that the last scrape of those who watch is told from anybody's.
//!
//! A scraper is known by its address and its User-Agent: behind one address there may be a Prometheus and, through a
//! forwarded port, a person. One that came twice or more while values changed is regular; the final values are for all of these
//! (Prometheus is often run in pairs), and only where there are none for one that came once. Of a job that was too short to be
//! scraped, whoever comes a second time is no stranger.

use std::collections::HashMap;
use std::net::IpAddr;

use axum::http::{HeaderMap, header};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Scrapers that are remembered; whoever comes after as many others is a stranger.
const MOST: usize = 64;

/// Bytes of a User-Agent that tell one from another.
const AGENT_BYTES: usize = 128;

/// An address and a User-Agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Scraper(IpAddr, Vec<u8>);

impl Scraper {
    pub(super) fn of(address: IpAddr, headers: &HeaderMap) -> Self {
        let agent = headers.get(header::USER_AGENT).map(|agent| agent.as_bytes()).unwrap_or_default();
        Self(address, agent[..agent.len().min(AGENT_BYTES)].to_vec())
    }
}

/// A scrape that has begun.
pub(super) struct Scrape {
    scraper: Scraper,
    is_final: bool,
}

#[derive(Default)]
pub(super) struct Scrapers {
    known: Mutex<Known>,
    satisfied: CancellationToken,
}

#[derive(Default)]
struct Known {
    /// Scrapes of each before values were final, and afterwards where there were none.
    scrapes: HashMap<Scraper, u32>,
    /// Scrapers that are waited for, once values are final.
    awaited: Option<Awaited>,
}

enum Awaited {
    All(Vec<Scraper>),
    AnyOf(Vec<Scraper>),
    /// Nobody has come before.
    AnyTwice,
}

impl Scrapers {
    /// Tells that one has come.
    pub(super) fn any(&self) -> bool {
        !self.lock().scrapes.is_empty()
    }

    /// Takes note of one that is about to be answered.
    pub(super) fn begin(&self, scraper: Scraper) -> Scrape {
        let mut known = self.lock();
        let is_final = known.awaited.is_some();
        if matches!(known.awaited, None | Some(Awaited::AnyTwice))
            && (known.scrapes.len() < MOST || known.scrapes.contains_key(&scraper))
        {
            *known.scrapes.entry(scraper.clone()).or_default() += 1;
        }
        Scrape { scraper, is_final }
    }

    /// Takes note of an answer.
    pub(super) fn end(&self, Scrape { scraper, is_final }: Scrape) {
        if !is_final {
            return;
        }
        let mut known = self.lock();
        let scrapes = known.scrapes.get(&scraper).copied().unwrap_or(0);
        let satisfied = match &mut known.awaited {
            None => false,
            Some(Awaited::AnyTwice) => scrapes > 1,
            Some(Awaited::AnyOf(scrapers)) => scrapers.contains(&scraper),
            Some(Awaited::All(scrapers)) => {
                let before = scrapers.len();
                scrapers.retain(|awaited| *awaited != scraper);
                before > 0 && scrapers.is_empty()
            }
        };
        if satisfied {
            self.satisfied.cancel();
        }
    }

    /// Declares values final; the token is cancelled once those who watch have them.
    pub(super) fn expect_final(&self) -> CancellationToken {
        let mut known = self.lock();
        if known.awaited.is_none() {
            let regular: Vec<Scraper> =
                known.scrapes.iter().filter(|(_, scrapes)| **scrapes > 1).map(|(scraper, _)| scraper.clone()).collect();
            known.awaited = Some(match (known.scrapes.is_empty(), regular.is_empty()) {
                (true, _) => Awaited::AnyTwice,
                (false, true) => Awaited::AnyOf(known.scrapes.keys().cloned().collect()),
                (false, false) => Awaited::All(regular),
            });
        }
        self.satisfied.clone()
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, Known> {
        self.known.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_who_came_before_are_waited_for() {
        for (before, within, satisfied) in [
            ("", "", false),
            ("", "ab", false),
            ("", "aba", true),
            ("a", "b", false),
            ("a", "ba", true),
            ("ab", "b", true),
            ("aab", "b", false),
            ("aab", "a", true),
            ("aabb", "a", false),
            ("aabb", "aa", false),
            ("aabbc", "ab", true),
        ] {
            let scrapers = Scrapers::default();
            let come = |name: char| {
                let headers = [(header::USER_AGENT, name.to_string().parse().unwrap())].into_iter().collect();
                scrapers.begin(Scraper::of([127, 0, 0, 1].into(), &headers))
            };
            before.chars().for_each(|name| scrapers.end(come(name)));
            // One that is on its way may have missed the final values.
            let early = come('a');
            scrapers.known.lock().scrapes.entry(early.scraper.clone()).and_modify(|scrapes| *scrapes -= 1);
            scrapers.known.lock().scrapes.retain(|_, scrapes| *scrapes > 0);
            let token = scrapers.expect_final();
            scrapers.end(early);
            assert!(!token.is_cancelled(), "{before}");
            within.chars().for_each(|name| scrapers.end(come(name)));
            assert_eq!(token.is_cancelled(), satisfied, "{before} then {within}");
        }
    }

    #[test]
    fn a_crowd_of_strangers_is_not_remembered() {
        let scrapers = Scrapers::default();
        for last in 0..=255 {
            scrapers.end(scrapers.begin(Scraper::of([127, 0, 0, last].into(), &HeaderMap::new())));
        }
        assert_eq!(scrapers.lock().scrapes.len(), MOST);
    }
}
