//! Known scrapers, so that the last scrape of a regular one is told from a scrape by chance.
//!
//! A scraper is identified by its address and its User-Agent: one address may have a Prometheus and, through a forwarded
//! port, a person. A scraper that came twice or more while values changed is regular. The final values must reach all
//! regular ones (Prometheus often runs in pairs), or, without any, one that came once. For a job that was too short to be
//! scraped, a scraper counts once it comes for the second time.

use std::collections::HashMap;
use std::net::IpAddr;

use axum::http::{HeaderMap, header};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Most scrapers that are remembered; later ones do not count.
const MOST: usize = 64;

/// Most bytes of a User-Agent that are compared.
const AGENT_BYTES: usize = 128;

/// Identity of a scraper: an address and a User-Agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Scraper(IpAddr, Vec<u8>);

impl Scraper {
    pub(super) fn of(address: IpAddr, headers: &HeaderMap) -> Self {
        let agent = headers.get(header::USER_AGENT).map(|agent| agent.as_bytes()).unwrap_or_default();
        // Cut: the text comes from a client and is kept to the end of the job.
        Self(address, agent[..agent.len().min(AGENT_BYTES)].to_vec())
    }
}

/// A scrape in progress.
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
    /// Scrapes by scraper before values were final; also afterwards, if there were none.
    scrapes: HashMap<Scraper, u32>,
    /// Scrapers to wait for, once values are final.
    awaited: Option<Awaited>,
}

enum Awaited {
    All(Vec<Scraper>),
    AnyOf(Vec<Scraper>),
    /// None had come before: any scraper that comes twice.
    AnyTwice,
}

impl Scrapers {
    /// Returns whether any scraper has come.
    pub(super) fn any(&self) -> bool {
        !self.lock().scrapes.is_empty()
    }

    /// Records a scrape that is about to be answered.
    pub(super) fn begin(&self, scraper: Scraper) -> Scrape {
        let mut known = self.lock();
        // Taken at the beginning: a scrape that began before values were final may have rendered older ones.
        let is_final = known.awaited.is_some();
        // Once particular scrapers are awaited, further ones do not change who is regular.
        if matches!(known.awaited, None | Some(Awaited::AnyTwice))
            && (known.scrapes.len() < MOST || known.scrapes.contains_key(&scraper))
        {
            *known.scrapes.entry(scraper.clone()).or_default() += 1;
        }
        Scrape { scraper, is_final }
    }

    /// Records that a scrape was answered.
    pub(super) fn end(&self, Scrape { scraper, is_final }: Scrape) {
        if !is_final {
            return;
        }
        let mut known = self.lock();
        let scrapes = known.scrapes.get(&scraper).copied().unwrap_or(0);
        let satisfied = match &mut known.awaited {
            None => false,
            // The second visit distinguishes a scraper from a person who looks once.
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

    /// Declares values final. The token is cancelled once the awaited scrapers have them.
    pub(super) fn expect_final(&self) -> CancellationToken {
        let mut known = self.lock();
        if known.awaited.is_none() {
            let regular: Vec<Scraper> =
                known.scrapes.iter().filter(|(_, scrapes)| **scrapes > 1).map(|(scraper, _)| scraper.clone()).collect();
            // Decided once, when values become final: the list must not grow while it is waited for.
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
