"""Questions about the tables of Spider's ``concert_singer`` with their queries, written for this project."""

from __future__ import annotations

Pair = tuple[str, str]

EXAMPLES: tuple[Pair, ...] = (
    ("List the names of all stadiums.", "SELECT Name FROM stadium"),
    ("How many concerts took place in 2015?", "SELECT count(*) FROM concert WHERE Year = '2015'"),
    (
        "Which song was released last, and by which singer?",
        "SELECT Song_Name, Name FROM singer ORDER BY Song_release_year DESC LIMIT 1",
    ),
    (
        "For each country, how many singers are younger than 45?",
        "SELECT Country, count(*) FROM singer WHERE Age < 45 GROUP BY Country",
    ),
)
"""Worked examples in the prompt; none of them is asked."""

QUESTIONS: tuple[Pair, ...] = (
    ("How many stadiums are there?", "SELECT count(*) FROM stadium"),
    ("How many concerts are there?", "SELECT count(*) FROM concert"),
    ("What are the names of all singers?", "SELECT Name FROM singer"),
    ("Which countries do the singers come from? Name each once.", "SELECT DISTINCT Country FROM singer"),
    ("What is the average age of all singers?", "SELECT avg(Age) FROM singer"),
    ("What is the average age of singers from France?", "SELECT avg(Age) FROM singer WHERE Country = 'France'"),
    ("How old is the oldest singer?", "SELECT max(Age) FROM singer"),
    ("What is the name of the youngest singer?", "SELECT Name FROM singer ORDER BY Age LIMIT 1"),
    ("List the names of singers from oldest to youngest.", "SELECT Name FROM singer ORDER BY Age DESC"),
    ("What are the names of singers who are older than 40?", "SELECT Name FROM singer WHERE Age > 40"),
    ("How many singers come from each country?", "SELECT Country, count(*) FROM singer GROUP BY Country"),
    (
        "Which countries have more than one singer?",
        "SELECT Country FROM singer GROUP BY Country HAVING count(*) > 1",
    ),
    (
        "Which country has the most singers?",
        "SELECT Country FROM singer GROUP BY Country ORDER BY count(*) DESC LIMIT 1",
    ),
    ("What are the names and ages of singers from the Netherlands?",
     "SELECT Name, Age FROM singer WHERE Country = 'Netherlands'"),
    ("Which songs have a name that contains 'Hey'?", "SELECT Song_Name FROM singer WHERE Song_Name LIKE '%Hey%'"),
    ("Which songs were released between 2008 and 2014?",
     "SELECT Song_Name FROM singer WHERE Song_release_year BETWEEN 2008 AND 2014"),
    ("What is the largest capacity of a stadium?", "SELECT max(Capacity) FROM stadium"),
    ("What is the total capacity of all stadiums?", "SELECT sum(Capacity) FROM stadium"),
    ("What is the name of the stadium with the largest capacity?",
     "SELECT Name FROM stadium ORDER BY Capacity DESC LIMIT 1"),
    ("What are the names and locations of stadiums with a capacity above 5000?",
     "SELECT Name, Location FROM stadium WHERE Capacity > 5000"),
    ("List the names of stadiums in alphabetical order.", "SELECT Name FROM stadium ORDER BY Name"),
    ("How many stadiums have an average attendance below 500?", "SELECT count(*) FROM stadium WHERE Average < 500"),
    ("What are the names and themes of all concerts?", "SELECT concert_Name, Theme FROM concert"),
    ("Which concerts took place in 2014?", "SELECT concert_Name FROM concert WHERE Year = '2014'"),
    ("How many concerts took place in each year?", "SELECT Year, count(*) FROM concert GROUP BY Year"),
    (
        "For each concert, what are its name and the name of its stadium?",
        "SELECT T1.concert_Name, T2.Name FROM concert AS T1 JOIN stadium AS T2 ON T1.Stadium_ID = T2.Stadium_ID",
    ),
    (
        "How many concerts took place in each stadium? Give the name of the stadium and the number.",
        "SELECT T2.Name, count(*) FROM concert AS T1 JOIN stadium AS T2 ON T1.Stadium_ID = T2.Stadium_ID "
        "GROUP BY T1.Stadium_ID",
    ),
    (
        "What are the names of stadiums without a concert?",
        "SELECT Name FROM stadium WHERE Stadium_ID NOT IN (SELECT Stadium_ID FROM concert)",
    ),
    (
        "What are the names of singers who sang in a concert? Name each once.",
        "SELECT DISTINCT T2.Name FROM singer_in_concert AS T1 JOIN singer AS T2 ON T1.Singer_ID = T2.Singer_ID",
    ),
    (
        "What are the names of singers who never sang in a concert?",
        "SELECT Name FROM singer WHERE Singer_ID NOT IN (SELECT Singer_ID FROM singer_in_concert)",
    ),
    (
        "How many singers sang in each concert? Give the name of the concert and the number.",
        "SELECT T2.concert_Name, count(*) FROM singer_in_concert AS T1 JOIN concert AS T2 "
        "ON T1.concert_ID = T2.concert_ID GROUP BY T2.concert_ID",
    ),
    ("Which singers are older than the average singer?",
     "SELECT Name FROM singer WHERE Age > (SELECT avg(Age) FROM singer)"),
    ("Which stadiums hold more people than the average stadium?",
     "SELECT Name FROM stadium WHERE Capacity > (SELECT avg(Capacity) FROM stadium)"),
    (
        "Which years have both a concert with the theme 'Free choice' and one with the theme 'Wide Awake'?",
        "SELECT Year FROM concert WHERE Theme = 'Free choice' INTERSECT SELECT Year FROM concert "
        "WHERE Theme = 'Wide Awake'",
    ),
    (
        "Which countries have a singer above 40 and a singer below 30?",
        "SELECT Country FROM singer WHERE Age > 40 INTERSECT SELECT Country FROM singer WHERE Age < 30",
    ),
    ("How many singers are male?", "SELECT count(*) FROM singer WHERE Is_male = 'T'"),
    ("What are the oldest and the youngest age among the singers?", "SELECT max(Age), min(Age) FROM singer"),
)  # fmt: skip
