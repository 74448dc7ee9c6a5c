-- Three rows that belong to a message, and PostgreSQL looked for the message, and locked it, at each.
-- They are written by the statement that writes the message, or for a delivery that is there. Whoever deletes messages still leaves nothing.
ALTER TABLE message_bodies DROP CONSTRAINT message_bodies_message_id_fkey;
ALTER TABLE deliveries DROP CONSTRAINT deliveries_message_id_fkey;
ALTER TABLE timeline DROP CONSTRAINT timeline_message_id_fkey;

CREATE FUNCTION forget_messages() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM message_bodies USING forgotten WHERE message_id = forgotten.id;
    DELETE FROM timeline USING forgotten WHERE message_id = forgotten.id;
    DELETE FROM deliveries USING forgotten WHERE message_id = forgotten.id;
    RETURN NULL;
END $$;

CREATE TRIGGER messages_forgotten AFTER DELETE ON messages
    REFERENCING OLD TABLE AS forgotten FOR EACH STATEMENT EXECUTE FUNCTION forget_messages();
