-- Which host made an attempt, and what was said with each server it tried, step by step.

ALTER TABLE timeline ADD COLUMN host text;
ALTER TABLE timeline ADD COLUMN servers jsonb NOT NULL DEFAULT '[]';
